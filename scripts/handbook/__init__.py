"""Makes the pages of the documentation that follow from the code, so that they cannot say anything else.

`hooks.py` hands them to mkdocs when the site is built. Nothing of it is written into `docs/`. The functions here need
mkdocs only where `hooks.py` calls them, so tests can call the others without it.
"""
