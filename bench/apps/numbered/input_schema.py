INPUT_SCHEMA = {
    # What each event begins with.
    "KEY": {"datatype": "STRING", "required": True, "shape": [1], "example": ["a"]},
    "COUNT": {"datatype": "INT32", "required": True, "shape": [1], "example": [10]},
    # Milliseconds from one event to the next.
    "PERIOD_MS": {"datatype": "INT32", "required": True, "shape": [1], "example": [250]},
    # Characters at the end of each event.
    "SIZE": {"datatype": "INT32", "required": False, "shape": [1], "example": [0]},
}
IS_STREAMING_OUTPUT = True
