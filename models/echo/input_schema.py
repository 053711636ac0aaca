INPUT_SCHEMA = {
    "TEXT": {"datatype": "STRING", "required": True, "shape": [1], "example": ["How to make an omelette"]},
    "PAUSE_MS": {"datatype": "INT32", "required": False, "shape": [1], "example": [200]},
    "REPEAT": {"datatype": "INT32", "required": False, "shape": [1], "example": [1]},
}
IS_STREAMING_OUTPUT = True
