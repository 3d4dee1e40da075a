"A headless Chromium that opens a file and tells what it saw: sizes, console messages, requests, pictures"
import base64, fcntl, json, os, select, shutil, subprocess, tempfile
from pathlib import Path

path = shutil.which('chromium') or shutil.which('chromium-browser')
flags = ['--headless', '--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu', '--disable-quic', '--no-first-run',
         '--disable-background-networking', '--disable-component-update', '--disable-sync', '--remote-debugging-pipe']

def _up(fd):
    "`fd` under a number that is neither 3 nor 4"
    new = fcntl.fcntl(fd, fcntl.F_DUPFD, 20)
    os.close(fd)
    return new

class Chromium:
    "Context manager: one browser, spoken to through the DevTools protocol on file descriptors 3 and 4"
    def __enter__(self):
        self.profile = tempfile.mkdtemp()
        (to_child,self.out),(self.inp,from_child) = os.pipe(),os.pipe()
        to_child,from_child = _up(to_child),_up(from_child)
        cmd = f'exec "$@" 3<&{to_child} 4>&{from_child}'
        self.proc = subprocess.Popen(['bash', '-c', cmd, 'bash', path, *flags, f'--user-data-dir={self.profile}', 'about:blank'],
                                     pass_fds=(to_child,from_child), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in to_child,from_child: os.close(fd)
        self.n,self.buffer,self.events,self.session = 0,b'',[],None
        target = self.call('Target.createTarget', url='about:blank')['targetId']
        self.session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for o in 'Page','Runtime','Log','Network': self.call(f'{o}.enable')
        return self

    def __exit__(self, *args):
        self.proc.terminate()
        self.proc.wait(20)
        for fd in self.out,self.inp: os.close(fd)
        shutil.rmtree(self.profile, ignore_errors=True)

    def call(self, method, **params):
        "Send a command and wait for its result; events that come first are kept"
        self.n += 1
        msg = dict(id=self.n, method=method, params=params) | ({'sessionId': self.session} if self.session else {})
        os.write(self.out, json.dumps(msg).encode()+b'\0')
        while (res := self._read()).get('id') != self.n: self.events.append(res)
        assert 'error' not in res, f"{method}: {res['error']}"
        return res['result']

    def _read(self, seconds=60):
        while b'\0' not in self.buffer:
            assert select.select([self.inp], [], [], seconds)[0], f"no answer from the browser in {seconds} s"
            more = os.read(self.inp, 1<<20)
            assert more, "the browser has ended"
            self.buffer += more
        msg,_,self.buffer = self.buffer.partition(b'\0')
        return json.loads(msg)

    def js(self, expression):
        "Value of a JavaScript expression, from outside the page's content security policy"
        return self.call('Runtime.evaluate', expression=expression, returnByValue=True, awaitPromise=True)['result'].get('value')

    def open(self, file, width=1200, height=900, dark=False, media=''):
        "Open `file`, wait until it is loaded, and return what it logged and the addresses that it asked for"
        self.events.clear()
        self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=width<600)
        scheme = dict(name='prefers-color-scheme', value='dark' if dark else 'light')
        self.call('Emulation.setEmulatedMedia', media=media, features=[scheme])
        self.call('Page.navigate', url=Path(file).absolute().as_uri())
        while not any(o.get('method') == 'Page.loadEventFired' for o in self.events): self.events.append(self._read())
        self.js('new Promise(f => requestAnimationFrame(f))')
        return self.messages(),self.requests()

    def messages(self):
        "What stands in the console: errors, warnings, exceptions"
        kinds = 'Log.entryAdded','Runtime.consoleAPICalled','Runtime.exceptionThrown'
        return [o['params'] for o in self.events if o.get('method') in kinds]

    def requests(self):
        "The addresses of all requests; of data: addresses only the beginning"
        return [o['params']['request']['url'][:200] for o in self.events if o.get('method') == 'Network.requestWillBeSent']

    def screenshot(self, file):
        "Save a picture of the whole page"
        size = self.call('Page.getLayoutMetrics')['cssContentSize']
        clip = dict(x=0, y=0, width=size['width'], height=size['height'], scale=1)
        data = self.call('Page.captureScreenshot', clip=clip, captureBeyondViewport=True)['data']
        Path(file).write_bytes(base64.b64decode(data))

    def pdf(self, file):
        "Print the page to a PDF file"
        Path(file).write_bytes(base64.b64decode(self.call('Page.printToPDF')['data']))
