"""Advice that no training run needs: machine checks, a recommended config, the dry run, the benchmark, operation counts."""
