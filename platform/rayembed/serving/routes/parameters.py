"""What routes read from a request beside its body."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import Depends, Header, Request

from rayembed.serving.messages import Priority
from rayembed.serving.records import RequestRecord, record_of

PRIORITY_HEADER = "X-Rayembed-Priority"


def _trace(request: Request) -> Mapping[str, str]:
    return {name: value for name in ("traceparent", "tracestate") if (value := request.headers.get(name))}


Record = Annotated[RequestRecord, Depends(record_of)]
Trace = Annotated[Mapping[str, str], Depends(_trace)]
WorkPriority = Annotated[
    Priority,
    Header(alias=PRIORITY_HEADER, description="bulk work is computed when online work leaves room"),
]
