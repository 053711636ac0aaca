INPUT_SCHEMA = {
    "TEXT": {"datatype": "STRING", "required": True, "shape": [1], "example": ["bam den"]},
    "KIND": {"datatype": "STRING", "required": True, "shape": [1], "example": ["self"]},
    "SEED": {"datatype": "INT64", "required": True, "shape": [1], "example": [7]},
    "TOKENS": {"datatype": "INT32", "required": False, "shape": [1], "example": [60]},
}
IS_STREAMING_OUTPUT = True
