# Makes and updates the virtual environment .venv of this checkout; the other scripts source this.
# shellcheck shell=bash
#
# They set `program` (their name in messages) and `checkout` (the parent of this folder, absolute,
# links resolved) and call `prepare_environment EXTRA...`. If .venv is up to date, it returns within
# milliseconds and starts neither Python nor pip. It looks at these files:
#
#   .venv/made_for         the path of the checkout and the file that .venv/bin/python resolved to;
#                          an environment contains both, so that it breaks if one of them changes
#   .venv/installed_EXTRA  setup.cfg and pyproject.toml as they were when EXTRA was installed,
#                          written last
#   .venv.lock             locked while .venv is changed; text inside means that the change was
#                          interrupted, so that nothing in .venv can be relied on
#
# Everything here also runs in bash 3.2, the version of macOS.

: "${program:?is set by the caller}" "${checkout:?is set by the caller}"
venv="$checkout/.venv"
lock="$checkout/.venv.lock"
settings=""

say() { printf '%s\n' "$*" >&2; }

fail() {
    local code="$1"
    shift
    printf '%s: %s\n' "$program" "$*" >&2
    exit "$code"
}

prepare_environment() {
    settings="$(<"$checkout/setup.cfg")"$'\n'"$(<"$checkout/pyproject.toml")"
    if is_ready "$@"; then
        return
    fi
    case "$checkout" in
    *:* | *$'\n'*)
        fail 2 "Python cannot make a virtual environment in a path with a ':' or a line break;" \
            "rename the folder: $checkout"
        ;;
    esac
    if ! { mkdir -p "$venv" && : >>"$lock"; } 2>/dev/null; then
        fail 7 "cannot write to $checkout, where the environment .venv belongs;" \
            "use a copy of the checkout in a folder of your own."
    fi
    trap 'exit 130' INT
    local python
    find_python
    exec 9>>"$lock"
    wait_for_lock
    if ! is_ready "$@"; then
        if must_be_made; then
            make_environment
        fi
        install_package "$@"
    fi
    exec 9>&-
    trap - INT
}

is_ready() {
    local extra
    is_sound || return 1
    for extra in "$@"; do
        is_installed "$extra" || return 1
    done
}

is_sound() {
    local path="" base=""
    if [[ -f $venv/made_for ]]; then
        { IFS= read -r path && IFS= read -r base; } <"$venv/made_for" || true
    fi
    [[ $path == "$checkout" && -x $venv/bin/python && $venv/bin/python -ef $base ]]
}

is_installed() {
    [[ -f $venv/installed_$1 && "$(<"$venv/installed_$1")" == "$settings" ]]
}

# Succeeds if .venv must be made from scratch; says what will be done.
must_be_made() {
    if [[ -s $lock ]]; then
        say "The last installation was interrupted: making the environment .venv again" \
            "(a minute or more)."
    elif [[ -f $venv/made_for ]]; then
        if is_sound; then
            say "Bringing the environment .venv up to date with setup.cfg and pyproject.toml" \
                "(seconds, or minutes if TensorFlow itself changes)."
            return 1
        fi
        say "The checkout or its Python has moved: making the environment .venv again" \
            "(a minute or more)."
    elif [[ -z "$(ls -A "$venv")" ]]; then
        say "First use: making a virtual environment in .venv and installing TensorFlow" \
            "(about 0.7 GB to download, 2.5 GB on disk, a few minutes). Later starts skip this."
    elif "$venv/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
    then
        say "First use: installing TensorFlow into the existing environment .venv" \
            "(up to a few minutes). Later starts skip this."
        record_origin
        return 1
    else
        fail 2 "$venv was not made by this program and has no Python >= 3.11 with pip;" \
            "move it away and try again."
    fi
}

make_environment() {
    local output
    echo "unfinished" >"$lock"
    if ! output="$("$python" -m venv --clear "$venv" 2>&1)"; then
        say "$output"
        fail 1 "$python could not make the environment $venv (see above)."
    fi
    record_origin
}

record_origin() {
    printf '%s\n' "$checkout" "$(readlink -f -- "$venv/bin/python")" >"$venv/made_for"
}

install_package() {
    local extra extras log="$venv/install.log" code=0
    extras="$(IFS=, && echo "$*")"

    echo "unfinished" >"$lock"
    (cd -- "$checkout" && exec "$venv/bin/python" -m pip install --disable-pip-version-check \
        --no-input --editable ".[$extras]") >"$log" 2>&1 </dev/null || code=$?
    if ((code > 128)); then
        fail "$code" "the installation was stopped; the next start repeats it."
    fi
    if ((code == 0)); then
        for extra in "$@"; do
            printf '%s\n' "$settings" >"$venv/installed_$extra"
        done
    fi
    : >"$lock" # pip ended by itself, and leaves no package half-installed
    if ((code != 0)); then
        tail -n 40 -- "$log" >&2
        fail 1 "installing failed (see above); all of pip's output is in $log"
    fi
}

# Sets `python` to a command that can make the environment. TensorFlow is published for only a few
# versions of Python at a time, so a newer one is used only if there is no other.
find_python() {
    local candidate version newer="" without_venv=""
    local probe='
import sys
print("%d.%d" % sys.version_info[:2])
try:
    import ensurepip, venv
except ImportError:
    print("without venv")
'
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.14 \
        python; do
        # A command may exist and still not start: pyenv adds one to the path for every version.
        version="$("$candidate" -c "$probe" 2>/dev/null)" || version="none"
        case "$version" in
        3.11 | 3.12 | 3.13)
            python="$candidate"
            return
            ;;
        3.1[4-9] | 3.[2-9][0-9]) newer="${newer:-$candidate}" ;;
        3.1[1-9]*without* | 3.[2-9][0-9]*without*) without_venv="${without_venv:-$candidate}" ;;
        esac
        if [[ -n ${PYTHON:-} ]]; then
            break
        fi
    done
    python="$newer"
    if [[ -n $python ]]; then
        return
    elif [[ -n $without_venv ]]; then
        fail 2 "$without_venv has no module venv; install it" \
            "(Debian and Ubuntu: apt-get install python3-venv) and try again."
    elif [[ -n ${PYTHON:-} ]]; then
        fail 2 "PYTHON is '$PYTHON', which is not a Python >= 3.11; set it to one, or unset it."
    fi
    fail 2 "found no Python >= 3.11 (looked for python3, python3.11 to python3.14, python);" \
        "install one, or set PYTHON to its path."
}

# Locks file 9 for this process and its children. Python does it because macOS has no flock command;
# the lock belongs to the open file, which outlives that Python. On a file system without locks,
# nothing is locked.
wait_for_lock() {
    "$python" -c '
import fcntl
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback after Ctrl-C while waiting
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.stderr.write("Another process is preparing .venv: waiting for it to finish.\n")
    sys.stderr.flush()
    fcntl.flock(9, fcntl.LOCK_EX)
except OSError:
    pass
'
}
