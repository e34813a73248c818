"""The worker: claims tasks and runs them.

worker     starts and stops everything else; runs what is claimed
claims     claims tasks while slots are free, and waits for work
leases     extends leases and runs maintenance, in a thread of its own
options    what an application may choose for its worker
hosting    runs a worker until a signal arrives, or in a thread
signals    the handlers of the signals that stop a worker
"""
