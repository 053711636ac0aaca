import json

INPUT_SCHEMA = {
    "TEXT": {"datatype": "STRING", "required": True, "shape": [1], "example": ["How to make an omelette"]},
    "SYSTEM": {
        "datatype": "STRING",
        "required": False,
        "shape": [1],
        "example": ["You are an assistant that knows about cooking."],
    },
    "MAX_NEW_TOKENS": {"datatype": "INT32", "required": False, "shape": [1], "example": [256]},
    "SEED": {"datatype": "INT64", "required": False, "shape": [1], "example": [42]},
    "SAMPLING": {
        "datatype": "STRING",
        "required": False,
        "shape": [1],
        "example": [json.dumps({"temperature": 0.7, "top_p": 0.9, "top_k": 50, "repetition_penalty": 1.1})],
    },
}
IS_STREAMING_OUTPUT = True
