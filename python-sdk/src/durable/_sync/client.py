# Made from _async/client.py by tools/async_to_sync.py: edit that, not this.
"""The client: an application's queue, its tasks, and its workers."""

from __future__ import annotations

from typing import Unpack

from durable._sync.many import Many
from durable._sync.operating import Operating
from durable._sync.queues import Queues
from durable._sync.sending import Sending
from durable._sync.spawning import Spawning
from durable._sync.versions import Versions
from durable._worker.hosting import ThreadedWorker, run_until_signalled
from durable._worker.options import WorkerOptions, worker_of
from durable.registry import AnyTask

__all__ = ["Durable"]


class Durable(Queues, Spawning, Sending, Operating, Many, Versions):
    """An application: where its tasks are kept, and what they are.

        with Durable("postgresql://localhost/shop", tasks=[Order]) as app:
            handle = app.spawn(Order, {"id": 7})

    `database` is a conninfo, or an open or unopened psycopg pool, which stays yours;
    without one, DURABLE_DATABASE_URL says where. `queue` is where tasks go that name
    none. `lifespan` is called by each worker before its first claim; what its async
    context manager yields is `ctx.state`. `prepare=False` never prepares statements,
    as some poolers need. Behind those that keep no session, `listen_url` is the address
    of the same database without them, to be told of work and results; `listen=False`
    polls for results instead.
    `version` is that of your code, else DURABLE_APP_VERSION says it, if anything does:
    it counts in queues whose policy says so.
    `keep_logs` keeps with each task what any logger says in it from this level on, such
    as `logging.INFO`; unless said, what `ctx.logger` says from INFO on.
    Nothing is connected before the first call, and what was
    closed may be entered again.
    """

    def register(self, *tasks: AnyTask) -> None:
        """Add tasks that workers started from now on know.

        Raises InvalidArgument if another task has the same name.
        """
        for task in tasks:
            self.application.registry.add(task)

    def worker(self, **options: Unpack[WorkerOptions]) -> ThreadedWorker:
        """Return a worker, to be used as a context manager; see WorkerOptions.

            with app.worker(concurrency=50) as worker:
                worker.drain()

        Signals are the host's business: `run_worker` handles them.
        """
        return ThreadedWorker(worker_of(self.application, options))

    def run_worker(self, **options: Unpack[WorkerOptions]) -> None:
        """Run a worker until SIGTERM or SIGINT; a second signal ends it at once.

        Raises what no time heals: SchemaVersion, UnknownQueue, a missing right.
        """
        worker = worker_of(self.application, options)
        run_until_signalled(worker)
