"""An answer without a model: what is measured is the server."""


class InferlessPythonModel:
    def initialize(self):
        pass

    def infer(self, inputs):
        return {"OUT": inputs["TEXT"]}

    def finalize(self):
        pass
