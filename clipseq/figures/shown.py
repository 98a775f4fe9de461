"""A figure that notebooks show, whatever backend matplotlib has."""

from io import BytesIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class ShownFigure(Figure):
    """A figure with its own canvas, that a notebook shows as a picture.

    Matplotlib's own figures are shown only after ``%matplotlib inline`` or an import of pyplot.
    """

    def __init__(self, width: float, height: float) -> None:
        super().__init__(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(self)

    def _repr_png_(self) -> bytes:
        """Return the picture, which IPython asks for by this name."""
        picture = BytesIO()
        self.savefig(picture, format="png", dpi=100)
        return picture.getvalue()
