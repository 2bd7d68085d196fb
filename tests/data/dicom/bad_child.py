"""In place of the process that opens DICOM files, one that breaks down or hangs as the request says."""

import os
import time

from fed_diffmic.data.dicom import child


def answer(head, data):
    if head["what"] == "abort":
        os.abort()
    if head["what"] == "hang":
        time.sleep(600)
    if head["what"] == "memory":
        bytearray(2 * child.MEMORY)
    if head["what"] == "environment":
        return {"names": sorted(os.environ)}, b""
    return {"done": len(data)}, b""


if __name__ == "__main__":
    child._answer = answer
    child.main()
