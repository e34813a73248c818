"""The worker: claims tasks, runs them, and saves what they did in batches.

worker      starts and stops the rest; what the application holds
claims      takes tasks as slots are free
run         one task on this worker, from its claim to its end
waits       which of a run's branches are busy, and when it may leave
saving      group commit: what all runs have to save, in one statement
lane        the queue in front of one kind of statement
link        a connection that comes back
leases      keeps leases alive, from a thread of its own; housekeeping
doors       hears of new work
threads     where synchronous code runs
failures    exceptions as they are recorded, and restored
"""
