"""What runs inside a sandbox, with the standard library alone; `gro.rewards.sandbox` starts it.

Three programs, each a process of its own: `program` runs a completion's code as a script, `solution` runs it and then
answers calls of its functions, `checker` runs the tests, calling the solution through a socket.  The tests and the code
never share an interpreter: what the checker gets from the solution is data, and the verdict leaves by a pipe that only
the checker has.
"""
