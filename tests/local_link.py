"""Nodes of a deployment without a network between them and the server."""


class LocalLink:
    """Nodes in this process, each of which answers at once; a function from a message to its answer, or to None for no answer."""

    def __init__(self, answers):
        self.answers = dict(enumerate(answers))
        self._came = []

    def nodes(self):
        return set(self.answers)

    def send(self, node, message):
        answer = self.answers[node](message)
        if answer is not None:
            self._came.append((node, answer))

    def receive(self):
        came, self._came = self._came, []
        return came

    def forget(self, node):
        self._came = [(its, answer) for its, answer in self._came if its != node]
