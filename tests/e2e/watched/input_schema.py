INPUT_SCHEMA = {
    "TEXT": {"datatype": "STRING", "required": True, "shape": [1], "example": ["How to make an omelette"]},
    "MAX_NEW_TOKENS": {"datatype": "INT32", "required": False, "shape": [1]},
    "SEED": {"datatype": "INT64", "required": False, "shape": [1]},
    "SAMPLING": {"datatype": "STRING", "required": False, "shape": [1]},
}
IS_STREAMING_OUTPUT = True
