INPUT_SCHEMA = {
    "KEY": {"datatype": "STRING", "required": True, "shape": [1], "example": ["a"]},
    "COUNT": {"datatype": "INT32", "required": True, "shape": [1], "example": [10]},
    # Milliseconds between two bursts, and events of a burst.
    "PERIOD_MS": {"datatype": "INT32", "required": False, "shape": [1], "example": [10]},
    "BURST": {"datatype": "INT32", "required": False, "shape": [1], "example": [1]},
    # The longest text, in characters.
    "SIZE": {"datatype": "INT32", "required": False, "shape": [1], "example": [100]},
}
IS_STREAMING_OUTPUT = True
