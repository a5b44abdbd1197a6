"""How every search ends: its best trial on screen, and its page."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bincounter.sweep.distributions import values_of
from bincounter.sweep.page import write_page
from bincounter.sweep.plan import Plan
from bincounter.sweep.summary import Search, show

if TYPE_CHECKING:
    from optuna import Study


def conclude(plan: Plan, study: "Study") -> None:
    """Print the best trial and the command that trains it, and write ``sweep.html``."""

    def command(params: Mapping[str, Any]) -> str:
        return plan.command(values_of(params, plan.parameters))

    told = Search(metrics=plan.metrics, command=command, title=plan.name)
    show(study, told)
    page = plan.folder / "sweep.html"
    write_page(page, study, told)
    print(f"More in {page}")
