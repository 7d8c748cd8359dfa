"""The calls of POSIX and, where there are better ones, of Linux."""
