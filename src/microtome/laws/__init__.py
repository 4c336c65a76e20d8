"""The laws every instrument, fold and specimen obeys, ours and those of plug-ins alike.

Hold your own instrument to them in a test::

    from microtome.laws import check_instrument

    def test_it_obeys_the_laws():
        check_instrument(MyInstrument)

or one test a law, with pytest::

    from microtome.laws import parametrize_laws

    @parametrize_laws(MyInstrument)
    def test_law(instrument, law):
        law(instrument)
"""

from __future__ import annotations

from microtome.laws.base import Broken, Law, check_instrument, parametrize_laws
from microtome.laws.folds import check_fold
from microtome.laws.instruments import INSTRUMENT_LAWS
from microtome.laws.specimens import SPECIMEN_LAWS, check_specimen

__all__ = [
    "INSTRUMENT_LAWS",
    "SPECIMEN_LAWS",
    "Broken",
    "Law",
    "check_fold",
    "check_instrument",
    "check_specimen",
    "parametrize_laws",
]
