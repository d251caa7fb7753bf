"""The documented `utils.*` names. Everything here re-exports from the package `parcontrol`."""
