"""How it is plugged together: settings, transport, web, command line. The only user of faust.

A package of the worker of Treasure Map.
"""
