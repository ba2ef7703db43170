"""What the tests of the pictures share."""

import itertools

from matplotlib.text import Text


def assert_readable(figure) -> None:
    """Asserts that every text lies within the picture and none on another."""
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    # Ticks outside the limits are not drawn, nor those of cubes.
    drawn = {t: False for ax in figure.axes if not ax.axison for t in ax.findobj(Text)}
    drawn |= {t: True for ax in figure.axes for t in (*ax.texts, ax.title)}
    for ax in filter(lambda ax: ax.axison, figure.axes):
        for child in (ax, *ax.child_axes):
            for axis in (child.xaxis, child.yaxis):
                low, high = sorted(axis.get_view_interval())
                for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                    inside = low <= tick.get_loc() <= high
                    drawn[tick.label1] = inside and tick.label1.get_visible()
                    drawn[tick.label2] = inside and tick.label2.get_visible()
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts if drawn.get(t, True)]
    for text, box in boxes:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert inside, f"{text!r} is cut off"
    for (a, box_a), (b, box_b) in itertools.combinations(boxes, 2):
        assert not box_a.overlaps(box_b), f"{a!r} overlaps {b!r}"
