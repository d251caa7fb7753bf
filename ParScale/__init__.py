"""The documented `ParScale.*` names. Everything here re-exports from the package `parcontrol`."""
