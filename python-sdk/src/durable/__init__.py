"""Durable execution that is nothing but Postgres.

    from durable import AsyncDurable, Task, TaskContext

    class Greet(Task[str, str]):
        async def run(self, name: str, ctx: TaskContext) -> str:
            return await ctx.step("greet", str.upper, name)

A saved step is not run again, whichever process crashes. `Durable` is the client for
synchronous code.
"""

from __future__ import annotations

import os as _os
from importlib import import_module as _import_module

from durable._client._async.client import AsyncDurable
from durable._client._async.handle import AsyncTaskHandle, AsyncTaskStream
from durable._client._sync.client import Durable
from durable._client._sync.handle import TaskHandle, TaskStream
from durable._core.audit import AuditEntry, AuditFilter
from durable._core.metrics import Depth, TaskTotal, Throughput
from durable._core.reports import (
    Actor,
    AnnouncedTask,
    EventInfo,
    Explanation,
    Finding,
    HistoryEntry,
    LogLine,
    PartitionInfo,
    Pause,
    PublishedInfo,
    QueueStats,
    ScheduleInfo,
    ScheduleRun,
    StreamEntry,
    TaskFilter,
    TaskInfo,
    TaskList,
    TaskResult,
    VersionStats,
    WorkerInfo,
)
from durable._db.schema import schema_sql
from durable._supervisor import run_worker
from durable._task._async.context import OpenStep, TaskContext
from durable._task._sync.context import SyncTaskContext
from durable._task.current import current
from durable._worker.hosting import ThreadedWorker
from durable._worker.options import WorkerOptions
from durable._worker.worker import Worker, WorkerHealth
from durable.batch import BatchTask
from durable.children import ChildHandle
from durable.codecs import PayloadCodec, Sealed
from durable.errors import (
    AlreadyFinished,
    BadStatus,
    Conflict,
    DatabaseUnavailable,
    DurableError,
    ErrorDetails,
    Forbidden,
    InvalidArgument,
    LeaseLost,
    NonDeterminism,
    NonRetryable,
    NotFound,
    QueueFull,
    ResponseTooLarge,
    SchemaVersion,
    StepFailed,
    Suspended,
    TaskCancelled,
    TaskFailed,
    UnknownQueue,
    UnreadablePayload,
    WrongIsolation,
)
from durable.http import RecordedResponse
from durable.middleware import Middleware
from durable.options import Rate, SpawnOptions
from durable.retry import Retry
from durable.schedules import Schedule
from durable.task import Task, task

__all__ = [
    "Actor",
    "AlreadyFinished",
    "AnnouncedTask",
    "AsyncDurable",
    "AsyncTaskHandle",
    "AsyncTaskStream",
    "AuditEntry",
    "AuditFilter",
    "BadStatus",
    "BatchTask",
    "ChildHandle",
    "Conflict",
    "DatabaseUnavailable",
    "Depth",
    "Durable",
    "DurableError",
    "ErrorDetails",
    "EventInfo",
    "Explanation",
    "Finding",
    "Forbidden",
    "HistoryEntry",
    "InvalidArgument",
    "LeaseLost",
    "LogLine",
    "Middleware",
    "NonDeterminism",
    "NonRetryable",
    "NotFound",
    "OpenStep",
    "PartitionInfo",
    "Pause",
    "PayloadCodec",
    "PublishedInfo",
    "QueueFull",
    "QueueStats",
    "Rate",
    "RecordedResponse",
    "ResponseTooLarge",
    "Retry",
    "Schedule",
    "ScheduleInfo",
    "ScheduleRun",
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
    "TaskFailed",
    "TaskFilter",
    "TaskHandle",
    "TaskInfo",
    "TaskList",
    "TaskResult",
    "TaskStream",
    "TaskTotal",
    "ThreadedWorker",
    "Throughput",
    "UnknownQueue",
    "UnreadablePayload",
    "VersionStats",
    "Worker",
    "WorkerHealth",
    "WorkerInfo",
    "WorkerOptions",
    "WrongIsolation",
    "current",
    "run_worker",
    "schema_sql",
    "task",
]

if _points := _os.environ.get("DURABLE_FAILPOINT"):  # set by crash tests
    _import_module("durable.testing._failpoints").arm(_points)
