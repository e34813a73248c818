"""Durable execution that is nothing but Postgres.

    from durable import AsyncDurable, Task, TaskContext

    class Greet(Task[str, str]):
        async def run(self, name: str, ctx: TaskContext) -> str:
            return await ctx.step("greet", str.upper, name)

Whatever crashes, a step that was saved is not run again. `Durable` is the same for
synchronous code.
"""

from __future__ import annotations

import os as _os

from durable._async.client import AsyncDurable
from durable._async.context import OpenStep, TaskContext
from durable._async.following import AsyncTaskStream
from durable._async.handle import AsyncTaskHandle
from durable._current import current
from durable._listing import TaskFilter, TaskInfo
from durable._published import LogLine, StreamEntry
from durable._results import QueueStats, TaskResult, VersionStats
from durable._supervisor import run_worker
from durable._sync.client import Durable
from durable._sync.context import SyncTaskContext
from durable._sync.following import TaskStream
from durable._sync.handle import TaskHandle
from durable._told import Actor, HistoryEntry
from durable._worker.hosting import ThreadedWorker
from durable._worker.options import WorkerOptions
from durable._worker.worker import Worker
from durable.children import ChildHandle
from durable.codecs import PayloadCodec, Sealed
from durable.errors import (
    AlreadyFinished,
    BadStatus,
    Conflict,
    DatabaseUnavailable,
    DurableError,
    Forbidden,
    InvalidArgument,
    LeaseLost,
    NonDeterminism,
    NonRetryable,
    NotFound,
    ResponseTooLarge,
    SchemaVersion,
    StepFailed,
    Suspended,
    TaskCancelled,
    TaskError,
    TaskFailed,
    UnknownQueue,
    UnreadablePayload,
)
from durable.http import RecordedResponse
from durable.options import SpawnOptions
from durable.retry import Retry
from durable.task import Task, task

__all__ = [
    "Actor",
    "AlreadyFinished",
    "AsyncDurable",
    "AsyncTaskHandle",
    "AsyncTaskStream",
    "BadStatus",
    "ChildHandle",
    "Conflict",
    "DatabaseUnavailable",
    "Durable",
    "DurableError",
    "Forbidden",
    "HistoryEntry",
    "InvalidArgument",
    "LeaseLost",
    "LogLine",
    "NonDeterminism",
    "NonRetryable",
    "NotFound",
    "OpenStep",
    "PayloadCodec",
    "QueueStats",
    "RecordedResponse",
    "ResponseTooLarge",
    "Retry",
    "SchemaVersion",
    "Sealed",
    "SpawnOptions",
    "StepFailed",
    "StreamEntry",
    "Suspended",
    "SyncTaskContext",
    "Task",
    "TaskCancelled",
    "TaskContext",
    "TaskError",
    "TaskFailed",
    "TaskFilter",
    "TaskHandle",
    "TaskInfo",
    "TaskResult",
    "TaskStream",
    "ThreadedWorker",
    "UnknownQueue",
    "UnreadablePayload",
    "VersionStats",
    "Worker",
    "WorkerOptions",
    "current",
    "run_worker",
    "task",
]

if _orders := _os.environ.get("DURABLE_FAILPOINT"):  # of tests that crash processes
    from durable._failpoints import arm as _arm

    _arm(_orders)
