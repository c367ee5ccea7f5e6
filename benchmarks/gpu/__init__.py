"""The jobs of gpu_suite.py, what only a GPU can show. Begin with plan.py, which lists them."""
