"""Settings of the whole suite."""

from hypothesis import HealthCheck, settings

# The same examples in every run: new ones are looked for by `tools/fuzz`, not by whoever builds the package.
# Nothing is a failure for being slow.
settings.register_profile(
    "suite", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")
