"""The kernel's means to isolate a program, and the test that they hold."""
