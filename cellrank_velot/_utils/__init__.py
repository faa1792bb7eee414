"""What every room may use: checks of arguments, devices, jobs, memory, files and compiled loops.

It knows neither cells nor kernels, and imports nothing else of this package.
"""
