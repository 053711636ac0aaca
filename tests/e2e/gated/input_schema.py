INPUT_SCHEMA = {
    "TEXT": {"datatype": "STRING", "required": True, "shape": [1], "example": ['[{"OUT": "To"}, {"OUT": " boil"}]']},
    "GATE": {"datatype": "STRING", "required": False, "shape": [1]},
}
IS_STREAMING_OUTPUT = True
