"""How a suite is made: the cases, the truth, the tolerances. Nothing here is needed to use one."""
