"""What is being computed in the background? Jobs: commands that outlive the page, and the server, that asked for them.

A job is a folder `<runs>/jobs/<fingerprint>/`. The fingerprint is that of the question (the command, the content of its files, the versions), so that the
same question finds the same job. Its process holds a lock on the file `alive`, from before it starts until it is dead, however it dies: so that nobody who
looks, not even after a restart, takes a dead job for a living one. The folder has

- `job.json`: what was asked, and when; beside it the files that were given with the question
- `process.json`: the process that works on it, with the time at which that was started, as numbers of processes are used again
- `progress.json`: how far it is; not there while it waits for its turn
- `result.txt` and `log.txt`: what the command said on stdout and on stderr; beside them the files that it wrote
- `end.json`: the exit code; `cancelled`: somebody wanted it to stop
"""

from workbench.jobs.asking import again, ask, find, named, overview, same
from workbench.jobs.job import STATES, Job, Progress
from workbench.jobs.working import report, running

__all__ = ["STATES", "Job", "Progress", "again", "ask", "find", "named", "overview", "report", "running", "same"]
