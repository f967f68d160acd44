"""The report as one page of HTML: self-contained, inert, and without a number that the JSON report lacks.

    page        the sections, from the JSON report to the text of the page
    charts      where the shapes of a picture stand
    words       what names of the report mean, for people
    examples    the pairs that `--examples` shows

The templates write SVG; a script of a few lines moves the slider and sorts tables, and nothing is lost without it.
"""

from pipeline.report.examples import Corner, examples
from pipeline.report.page import about, comparison_page, report_page

__all__ = ["Corner", "about", "comparison_page", "examples", "report_page"]
