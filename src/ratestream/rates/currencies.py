"""The currency codes that a pair may be made of.

A pair's name has no separator, so only three-letter codes can be told apart in it. A code that
is not here is refused with a reason, never guessed at.
"""

from __future__ import annotations

ACTIVE = frozenset(
    """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BHD BIF BMD BND BOB BOV BRL BSD BTN BWP BYN
    BZD CAD CDF CHE CHF CHW CLF CLP CNY COP COU CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR
    FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY
    KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU
    MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON
    RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP
    TRY TTD TWD TZS UAH UGX USD USN UYI UYU UYW UZS VED VES VND VUV WST XAD XAF XAG XAU XBA XBB
    XBC XBD XCD XCG XDR XOF XPD XPF XPT XSU XUA YER ZAR ZMW ZWG
    """.split()  # noqa: SIM905 - a table of codes reads better than 170 strings
)
"""ISO 4217 list one, as of 2026, without XTS (for testing) and XXX (no currency)."""

HISTORIC = frozenset(
    """
    AFA ANG ATS AZM BEF BGL BGN BYB BYR CSD CUC CYP DEM ECS EEK ESP FIM FRF GHC GRD HRK IEP ITL
    LTL LUF LVL MGF MRO MTL MZM NLG PTE ROL RUR SDD SIT SKK SLL SRG STD TMM TRL UAK VEB VEF YUM
    ZMK ZWD ZWL
    """.split()  # noqa: SIM905 - a table of codes reads better than 170 strings
)
"""ISO 4217 list three, as far as central banks publish rates since 1999: among them every
currency that the ECB has ever listed."""

CRYPTO = frozenset("ADA BCH BNB BTC DOT ETC ETH LTC SOL TRX XLM XMR XRP".split())  # noqa: SIM905
"""Not ISO 4217: the codes that exchanges use, as far as they have three letters."""

KNOWN = ACTIVE | HISTORIC | CRYPTO
