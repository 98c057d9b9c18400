"""The warning of `--precision=mixed_bfloat16` on a processor without instructions for it."""

import pytest

from vae_research.runs.session.precision import time_ratio, warning_of_bfloat16


def of_processor(tmp_path, flags, ratio):
    """The warning on a processor with these flags, and whether it was measured."""
    file, measured = tmp_path / "cpuinfo", []
    file.write_text(f"processor\t: 0\nmodel name\t: any\nflags\t\t: fpu {flags} sse2\n")

    def measure():
        measured.append(True)
        return ratio

    return warning_of_bfloat16(file, measure), bool(measured)


@pytest.mark.parametrize("unit", ["amx_bf16", "avx512_bf16"])
def test_a_processor_with_a_unit_is_asked_and_not_measured(unit, tmp_path):
    assert of_processor(tmp_path, f"avx2 {unit}", 8.0) == (None, False)


def test_a_slow_processor_is_measured_and_the_ratio_is_said(tmp_path):
    said, measured = of_processor(tmp_path, "avx2 avx512f avx512_bf16_like", 7.94)
    assert measured
    assert "7.9 times as long as in float32" in said
    assert of_processor(tmp_path, "avx2", 1.1) == (None, True)
    assert warning_of_bfloat16(tmp_path / "missing", lambda: 3.0) is not None


def test_the_ratio_is_of_times():
    assert 0.01 < time_ratio() < 1000.0
