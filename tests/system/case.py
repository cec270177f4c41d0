"""Marks a function as a case of the system tests."""


def case(seconds, device="3GiB"):
    """`seconds`: the bound on its time. `device`: the size of the node's first device."""
    def mark(function):
        function.case_seconds = seconds
        function.device = device
        return function
    return mark
