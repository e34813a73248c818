"""Fan out, fan in: count the words of many texts, each in a task of its own.

    export DURABLE_DATABASE_URL=postgresql://localhost/shop
    python fan_out.py

The tasks are functions, and the code is synchronous: `Durable` and `def`. While the
parent waits for its children, it is suspended and holds no worker.
"""

from __future__ import annotations

from collections import Counter

from durable import Durable, SyncTaskContext, task

TEXTS = {
    "hamlet": "to be or not to be that is the question",
    "genesis": "in the beginning was the word",
    "zen": "in the face of ambiguity refuse the temptation to guess",
}


def count(text: str) -> dict[str, int]:
    return dict(Counter(text.split()))


@task
def count_words(title: str, ctx: SyncTaskContext) -> dict[str, int]:
    return ctx.step("count", count, TEXTS[title])


@task
def count_all(titles: list[str], ctx: SyncTaskContext) -> list[tuple[str, int]]:
    children = ctx.spawn_many("text", count_words, titles)
    total: Counter[str] = Counter()
    for counted in ctx.gather(*children):
        total.update(counted)
    return total.most_common(2)


app = Durable(tasks=[count_words, count_all])


def main() -> None:
    with app:
        app.migrate()
        handle = app.spawn(count_all, list(TEXTS))
        with app.worker(concurrency=10):
            print(handle.result(timeout=60))


if __name__ == "__main__":
    main()
