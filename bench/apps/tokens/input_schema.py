INPUT_SCHEMA = {
    # Events to send.
    "COUNT": {"datatype": "INT32", "required": False, "shape": [1], "example": [100]},
    # Microseconds from one event to the next; 0 is as fast as it goes.
    "PERIOD_US": {"datatype": "INT32", "required": False, "shape": [1], "example": [0]},
    # Characters of OUT; 0 is "token ".
    "SIZE": {"datatype": "INT32", "required": False, "shape": [1], "example": [0]},
    # 1: each event says when it was made (T, CLOCK_MONOTONIC in nanoseconds).
    "STAMP": {"datatype": "INT8", "required": False, "shape": [1], "example": [0]},
    # More than 0: time each send but the first TIMED; OUT of the last event says in JSON how long they took.
    "TIMED": {"datatype": "INT32", "required": False, "shape": [1], "example": [0]},
}
IS_STREAMING_OUTPUT = True
