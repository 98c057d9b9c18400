"""Several finished runs side by side: records, what compares, tables and plots. No TensorFlow."""
