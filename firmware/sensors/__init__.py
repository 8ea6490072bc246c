"""Drivers of parts on SMBus, one file a part. A driver says which transfers it wants and what
their answers mean; `firmware.sensors.steps` carries them out, on any segment.

A driver of a sensor has three methods, all of them `Steps`:

    identify()   what it is, in words. Raises WrongPart when something else answers there
    configure()  what it must be told before it can be read, and nothing else
    read()       its readings: names with their units last, integers
"""
