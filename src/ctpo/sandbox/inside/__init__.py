"""What runs inside the isolation: standard library only, and no import from the rest of the package.

Mounted alone and run by a plain interpreter, under the name `inside`; hence the relative imports.
"""
