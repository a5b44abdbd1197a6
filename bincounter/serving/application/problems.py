"""What is answered in place of counts: a status of HTTP and a sentence."""

import json


class Problem(Exception):
    """A request that cannot be answered.

    Args:
        status: 400 the request is malformed, 413 too large, 415 of an unknown type, 422 no photo that can be read;
            503 too much at a time, 504 too late, 500 anything else that is not the client's fault.
        sentence: what is wrong; it ends in the next step.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence

    @property
    def headers(self) -> dict[str, str]:
        """Beside the content type: when to ask again."""
        return {"Retry-After": "1"} if self.status == 503 else {}

    def at(self, where: str) -> "Problem":
        """The same of a certain photo, such as ``instances[2]: ``."""
        return Problem(self.status, f"{where}{self.sentence[:1].lower()}{self.sentence[1:]}") if where else self

    def body(self) -> bytes:
        """``{"error": sentence}``, in ASCII whatever of the request is quoted."""
        return json.dumps({"error": self.sentence}).encode("ascii")
