"""What runs inside the isolation. It imports the standard library only, and nothing else of this package.

The folder is mounted alone and run by a plain interpreter under the name `inside`, so its imports are relative.
"""
