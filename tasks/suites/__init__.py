"""Model suites: a suite turns a model's name into a module, example inputs and a scalar loss.

Each suite is a module of this package with one function ``build(request: BuildRequest) -> Benchmark``. ``tasks.suites.catalogue``
(standard library only) knows which suites and names exist; ``tasks.suites.loader`` finds the builder and calls it.
"""
