"""Code that runs inside a box, with Python's standard library only.

`launcher` builds a box where bubblewrap is not installed, `zygote` is the box's first process,
`program` holds the untrusted code, and `judge` runs the tests in a process of its own. A box can
read no other folder of this package.
"""
