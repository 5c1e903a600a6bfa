"""The study room: one function per verb, over all other rooms. Imports lazily, so that ``import spared_fm`` stays light."""
