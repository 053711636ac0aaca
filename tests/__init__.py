import logging

# What the server logs about the mischief that tests do to it is not for the tests' output; assertLogs sees it.
logging.getLogger().addHandler(logging.NullHandler())
