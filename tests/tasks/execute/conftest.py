from tests.tasks.execute.harness import tidy, uncompiled  # noqa: F401 - fixtures of all tests here
