"Is every text of a figure inside it, and clear of the other texts?"
import itertools

from matplotlib.axis import Axis
from matplotlib.text import Text

def _hidden_ticks(ax):
    "The labels of ticks that are outside of the axes"
    for axis in (ax.xaxis, ax.yaxis):
        lo,hi = sorted(axis.get_view_interval())
        for t in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not lo <= t.get_loc() <= hi: yield from (t.label1, t.label2)

def texts(fig):
    "The texts that are drawn, with their boxes in pixels"
    fig.draw_without_rendering()
    hidden = {id(o) for ax in fig.findobj(lambda o: hasattr(o, 'get_xaxis')) for o in _hidden_ticks(ax)}
    off = {id(o) for ax in fig.axes if not ax.axison for axis in (ax.xaxis, ax.yaxis) for o in axis.findobj(Text)}
    found = [o for o in fig.findobj(Text) if o.get_visible() and o.get_text().strip() and id(o) not in hidden|off]
    return [(o.get_text(), o.get_window_extent()) for o in found if o.get_window_extent().width > 0]

def check_layout(fig, slack=1.):
    "No text reaches beyond the figure or into another one, by more than `slack` pixels"
    boxes = texts(fig)
    for text,b in boxes:
        assert min(b.x0, b.y0) > -slack and b.x1 < fig.bbox.x1+slack and b.y1 < fig.bbox.y1+slack, f"{text!r} is cut: {b}"
    for (s,a),(t,b) in itertools.combinations(boxes, 2):
        w,h = min(a.x1, b.x1)-max(a.x0, b.x0),min(a.y1, b.y1)-max(a.y0, b.y0)
        assert w < slack or h < slack, f"{s!r} and {t!r} overlap by {w:.0f}×{h:.0f} pixels"
