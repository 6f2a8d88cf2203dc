"""The synthetic street of `dtld sample`: a brief and a random generator in, a raw Bayer frame and lights out. No I/O.

`layout` decides by chance what stands at an intersection; `world` holds that and says what hides what in a view;
`paint` draws a view with `backdrop`, `lights` and `brush`; `sensor` makes light, noise and 12 bits of Bayer data of it.
"""
