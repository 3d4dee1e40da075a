"Runs notebooks in processes of their own while other tests run"
import os, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_code = "import sys; from nbdev.test import nbdev_test; nbdev_test(sys.argv[1])"

class Beside:
    "Runs notebooks one after the other in the background, from `start` on; `result` waits for one of them"
    def __init__(self): self.pool,self.runs,self.process,self.stopped = ThreadPoolExecutor(1),{},None,False

    def _run(self, nb):
        if self.stopped: return 1,'stopped'
        env = {**os.environ, 'OMP_NUM_THREADS': '1', 'MPLBACKEND': 'agg'}
        self.process = subprocess.Popen([sys.executable, '-c', _code, str(nb)], cwd=Path(nb).parent, env=env, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors='replace')
        out = self.process.communicate()[0]
        return self.process.returncode,out

    def start(self, nb):
        if nb not in self.runs: self.runs[nb] = self.pool.submit(self._run, nb)

    def result(self, nb): # return code and output
        self.start(nb)
        return self.runs[nb].result()

    def stop(self):
        self.stopped = True
        for o in self.runs.values(): o.cancel()
        if self.process and self.process.poll() is None: self.process.kill()
        self.pool.shutdown()
