"""Charts: rows in, Altair chart out. No Streamlit, no database, no state."""

from app.charts.effects import EffectRow
from app.charts.forest import forest_plot
from app.charts.heat_map import heat_map
from app.charts.saving import to_csv, to_png, to_svg

__all__ = ["EffectRow", "forest_plot", "heat_map", "to_csv", "to_png", "to_svg"]
